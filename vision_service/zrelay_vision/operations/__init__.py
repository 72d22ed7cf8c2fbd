"""What each call does with the engines: encode and score images, condition a prompt."""
