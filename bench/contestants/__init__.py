"""What a user would pick in place of the receiver, one that runs by itself a module."""
