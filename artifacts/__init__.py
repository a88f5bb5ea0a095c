"""Typed artifacts and the store that keeps them. Knows neither Prefect nor the science."""
