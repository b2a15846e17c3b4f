"""One module per protocol: its wire format to a `GenerationRequest`, and a result back."""
