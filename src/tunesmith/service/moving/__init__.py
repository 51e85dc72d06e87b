"""Moving house: what a hosted service still has of yours, as recipes, rows and evaluations of your own."""
