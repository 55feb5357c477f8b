"""How the procedural generator paints: noise, colours, skies and what stands before them."""
