"""What a bench leaves: the JSON document, and how it is shown, drawn and compared."""
