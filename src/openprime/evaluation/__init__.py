"""Benchmarks: asked, judged, scored, shown."""
