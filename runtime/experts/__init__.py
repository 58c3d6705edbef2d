"""Experts moved by prediction: routing recorded, predicted, cached and scheduled (ExpertFlow, arXiv 2410.17954)."""
