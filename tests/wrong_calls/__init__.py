"""Wrong calls, as people write them, each with the words of its error: a file for each subject."""

from wrong_calls import data, programs, training, verbs
from wrong_calls.subjects import Calls

CALLS: Calls = programs.CALLS | data.CALLS | training.CALLS | verbs.CALLS
