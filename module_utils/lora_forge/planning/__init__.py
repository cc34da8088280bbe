"""From configs and datasets to runs on trainers: recipes, checks, estimates, placement."""
