"""The outside of the service: each module is a blueprint called `bp` or serves all of them."""
