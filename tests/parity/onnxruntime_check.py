"""ONNX Runtime on the files that fedge writes: the trained float version and its int8 form.

    python onnxruntime_check.py FLOAT.onnx INT8.onnx ROWS.csv

ROWS.csv has a header, then 64 pixels 0..16 and a label a row. Checks that both files load, that float is right on at
least 90 % of the rows, and that int8 is within 2 points of it and agrees with it on at least 95 %.
"""

import sys

import numpy as np
import onnxruntime


def main():
    float_file, int8_file, rows_file = sys.argv[1:]
    rows = np.loadtxt(rows_file, delimiter=",", skiprows=1, dtype=np.float32)
    pixels, labels = rows[:, :64].reshape(-1, 1, 8, 8) / 16, rows[:, 64].astype(int)
    answers = {}
    for name, path in [("float", float_file), ("int8", int8_file)]:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        answers[name] = session.run(None, {session.get_inputs()[0].name: pixels})[0].argmax(axis=1)
    accuracy = {name: float((classes == labels).mean()) for name, classes in answers.items()}
    agreement = float((answers["float"] == answers["int8"]).mean())
    print("accuracy", accuracy, "agreement", agreement)
    assert accuracy["float"] >= 0.9, accuracy
    assert accuracy["int8"] >= accuracy["float"] - 0.02, accuracy
    assert agreement >= 0.95, agreement


if __name__ == "__main__":
    main()
