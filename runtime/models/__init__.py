"""Plain layers of each model family, knowing nothing of offloading."""
