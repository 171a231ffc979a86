"""Reads readings.csv and writes report.html: a table and a chart of each sensor."""

import base64
import io

print("loading pandas and matplotlib", flush=True)

import matplotlib
import pandas

matplotlib.use("Agg")
import matplotlib.pyplot as plt

readings = pandas.read_csv("readings.csv")
print(f"read {len(readings):,} rows", flush=True)

summary = readings.groupby("sensor")["value"].describe()
print(summary[["count", "mean", "min", "max"]].to_string(), flush=True)

figure, axes = plt.subplots(figsize=(6, 3))
for sensor, group in readings.groupby("sensor"):
    axes.hist(group["value"], bins=50, alpha=0.6, label=sensor)
axes.legend()
chart = io.BytesIO()
figure.savefig(chart, format="png")
print(f"drew a chart of {chart.tell():,} bytes", flush=True)

with open("report.html", "w") as report:
    report.write("<!doctype html><title>Readings</title>\n")
    report.write(summary.to_html())
    image = base64.b64encode(chart.getvalue()).decode()
    report.write(f'<img alt="histogram" src="data:image/png;base64,{image}">\n')
print("wrote report.html", flush=True)
