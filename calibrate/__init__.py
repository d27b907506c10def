"""Offline calibration of Mamba language models for lengths beyond the one they were trained at."""
