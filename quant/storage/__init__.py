"""The files under every checkpoint and every run: atomic writes, locks, safetensors, shards, zstd-compressed shards.

Nothing here knows a model or a quantization scheme. Modules without torch: `files`, `lock`, `headers`, `packing`,
`shards` (torch is imported when a tensor is read).
"""
