"""Quantized linears for any `torch.nn.Module`."""
