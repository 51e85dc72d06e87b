"""What answers over HTTP: so far the page on which people rate answers."""
