"""Metrics of video, measured by laws and networks of this repository; nothing is downloaded."""

from experiments.metrics.report import Measure, evaluate, table
from experiments.metrics.suite import METRICS, Classify, Metric, Sample, describe

__all__ = ["METRICS", "Classify", "Measure", "Metric", "Sample", "describe", "evaluate", "table"]
