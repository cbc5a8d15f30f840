"""The ledger: every figure of a document, and where it comes from."""
