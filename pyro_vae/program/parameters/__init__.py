"""The networks and tensors that a program trains, wherever its functions keep them."""
