/** From the service's series to the columns that uPlot draws. Pure. */

import { num } from "./api";
import type { SeriesFace } from "./schema";

export interface Line {
  key: string;
  label: string;
  /** Told once and done again since: drawn faintly, under the others. */
  dim?: boolean;
}

export interface Columns {
  /** x, then last, min, max for each line. Nulls are gaps. */
  data: (number | null)[][];
  /** Runs of steps, first and last, with a non-finite value in any of the lines. */
  bad: [number, number][];
  /** How many values a log axis cannot show. */
  left: number;
}

/**
 * Points sit in the middle of their step, as heatmap cells do. A gap is put before each of
 * `breaks`, the first steps of later attempts: two lives of a run are never joined by a line.
 * On a log axis what is not positive cannot be drawn and is left out.
 */
export function columns(series: SeriesFace, lines: Line[], log: boolean, breaks: number[]): Columns {
  const bad: [number, number][] = [];
  let left = 0;
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
        else if (v !== null && !fine && part === "last") left++;
      });
      if (found?.nonfinite[k]) isBad = true;
    });
    const last = (series.step[k + 1] ?? step + 1) - 1;
    if (isBad && wasBad) bad[bad.length - 1][1] = last;
    else if (isBad) bad.push([step, last]);
    wasBad = isBad;
  });
  return { data, bad, left };
}

/**
 * Where a log axis has its lines, at most about `most`: at whole decades; where fewer than two of
 * them fit, at 1, 2 and 5; and where the range is narrower than that, at round numbers.
 */
export function logTicks(low: number, high: number, most: number): number[] {
  if (!(low > 0) || !(high > low)) return [];
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const within = (list: number[]) => list.filter((v) => v >= low * (1 - 1e-9) && v <= high * (1 + 1e-9));
  const powers = Array.from({ length: last - first + 1 }, (_, k) => first + k);
  if (Math.log10(high / low) >= 2) {
    const every = Math.ceil((last - first) / most);
    return within(powers.filter((power) => power % every === 0).map((power) => Number(`1e${power}`)));
  }
  const some = within(powers.flatMap((power) => [1, 2, 5].map((lead) => Number(`${lead}e${power}`))));
  if (some.length > 1) return some;
  const rough = (high - low) / Math.max(2, most - 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const unit = [1, 2, 5, 10].find((lead) => lead * power >= rough)! * power;
  const out = [];
  for (let k = Math.ceil(low / unit - 1e-9); k * unit <= high * (1 + 1e-9); k++) out.push(Number((k * unit).toPrecision(12)));
  return out;
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
