"""A request has one home: what can be asked for, how it is read, checked and written."""
