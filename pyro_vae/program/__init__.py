"""Reading a (model, guide) pair: its plates, sites, parameters and log densities."""
