"""Right and typical wrong answers to the exercises of each chapter, for `test_exercises.py`."""
