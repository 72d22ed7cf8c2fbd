"""The features that a job may use, one folder each, and the protocol through which the engine calls them."""
