"""Typed artifacts and the store that keeps them. This package knows neither Prefect nor the science."""
