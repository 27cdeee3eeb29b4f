"""Offline: from traces to a certified policy, and the record of both."""

import os

# onnxruntime 1.29 and later report to their maker's server as soon as they are imported, and only this, set before,
# keeps them from it. Who wants the reports sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
