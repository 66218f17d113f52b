"""The classic failures of video training, looked for in weights, in a run's history, in its clips.

Read in this order: finding.py (what a check answers); weights.py, history.py and clips.py (the
checks); patient.py (what they look at, and all of them in a row).
"""

from evit_models.doctor.finding import Finding
from evit_models.doctor.patient import Patient, diagnose

__all__ = ["Finding", "Patient", "diagnose"]
