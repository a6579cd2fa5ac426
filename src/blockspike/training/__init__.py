"""Lightning modules and callbacks that train the networks."""
