"""Messages of the contract, made from the client's values and read into them."""
