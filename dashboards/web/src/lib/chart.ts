/** From the service's series to the columns that uPlot draws. Pure. */

import { num } from "./api";
import type { SeriesFace } from "./schema";

export interface Line {
  key: string;
  label: string;
}

export interface Columns {
  /** x, then last, min, max for each line. Nulls are gaps. */
  data: (number | null)[][];
  /** Runs of steps, first and last, with a non-finite value in any of the lines. */
  bad: [number, number][];
}

/**
 * Points sit in the middle of their step, as heatmap cells do. A gap is put before each of
 * `breaks`, the first steps of later attempts: two lives of a run are never joined by a line.
 * On a log axis what is not positive cannot be drawn and is left out.
 */
export function columns(series: SeriesFace, lines: Line[], log: boolean, breaks: number[]): Columns {
  const bad: [number, number][] = [];
  const x: number[] = [];
  const data: (number | null)[][] = [x, ...lines.flatMap(() => [[], [], []])];
  const cuts = [...breaks].sort((a, b) => a - b);
  let wasBad = false;
  series.step.forEach((step, k) => {
    let isBad = false;
    while (cuts.length && cuts[0] <= step) {
      const cut = cuts.shift()!;
      if (k === 0) continue;
      x.push(cut);
      for (let c = 1; c < data.length; c++) data[c].push(null);
    }
    x.push(step + 0.5);
    lines.forEach(({ key }, n) => {
      const found = series.keys[key];
      (["last", "min", "max"] as const).forEach((part, p) => {
        const v = found ? num(found[part][k]) : null;
        const fine = v !== null && Number.isFinite(v) && (!log || v > 0);
        data[1 + n * 3 + p].push(fine ? v : null);
        if (v !== null && !Number.isFinite(v)) isBad = true;
      });
      if (found?.nonfinite[k]) isBad = true;
    });
    const last = (series.step[k + 1] ?? step + 1) - 1;
    if (isBad && wasBad) bad[bad.length - 1][1] = last;
    else if (isBad) bad.push([step, last]);
    wasBad = isBad;
  });
  return { data, bad };
}

/** What a line says at `step`, or at its last step when null. */
export function reading(series: SeriesFace, key: string, step: number | null): number | null {
  const found = series.keys[key];
  if (!found) return null;
  let at = series.step.length - 1;
  if (step !== null) while (at > 0 && series.step[at] > step) at--;
  for (; at >= 0; at--) {
    const value = num(found.last[at]);
    if (found.nonfinite[at] && (value === null || Number.isFinite(value))) return NaN;
    if (value !== null || step !== null) return value;
  }
  return null;
}

/** Whether any of the keys has a value at all. */
export function speaks(series: SeriesFace, ...keys: string[]): boolean {
  return keys.some((key) => {
    const found = series.keys[key];
    return !!found && (found.last.some((v) => v !== null) || found.nonfinite.some((n) => n));
  });
}
