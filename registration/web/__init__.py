"""What the outside sees: each module is a blueprint called `bp` or serves all of them."""
