/**
 * From cells to pixels without losing an extreme: a pixel shows the most telling cell that
 * falls on it, so one bad step among a hundred thousand is still one visible mark.
 */

import { BAD, NO_DATA, columnAt, type HeatHeader } from "./decode";
import { CENTRE } from "./baseline";

/** First and one-past-last column under each of `width` pixels of the step range. */
export function pixelColumns(
  heat: Pick<HeatHeader, "step" | "step_last" | "cols">,
  from: number,
  to: number,
  width: number,
): { start: Int32Array; end: Int32Array } {
  const start = new Int32Array(width);
  const end = new Int32Array(width);
  const scale = (to - from) / width;
  for (let x = 0; x < width; x++) {
    const left = from + x * scale;
    const right = left + scale;
    let first = columnAt(heat.step, left);
    if (first < 0 || heat.step_last[first] + 1 <= left) first++; // left of data, or in a gap
    // A step covers [step, step + 1): the pixel shows every column that begins before its end.
    let last = columnAt(heat.step, right);
    if (last >= 0 && heat.step[last] === right) last--;
    start[x] = first;
    end[x] = Math.max(first, last + 1);
  }
  return { start, end };
}

export type Choice = "largest" | "furthest";

/**
 * One byte per pixel and row group. Within a pixel the largest cell wins ("largest"), or the
 * one furthest from the baseline ("furthest"); a non-finite cell beats both.
 */
export function pool(
  cells: Uint8Array,
  cols: number,
  groups: number[][],
  columns: { start: Int32Array; end: Int32Array },
  pick: Choice,
): Uint8Array {
  const width = columns.start.length;
  const out = new Uint8Array(groups.length * width);
  groups.forEach((rows, g) => {
    const target = g * width;
    for (const row of rows) {
      const base = row * cols;
      for (let x = 0; x < width; x++) {
        const end = columns.end[x];
        let best = out[target + x];
        for (let c = columns.start[x]; c < end; c++) {
          const byte = cells[base + c];
          if (byte === NO_DATA || best === BAD) continue;
          if (
            best === NO_DATA || byte === BAD ||
            (pick === "largest" ? byte > best : Math.abs(byte - CENTRE) > Math.abs(best - CENTRE))
          ) {
            best = byte;
          }
        }
        out[target + x] = best;
      }
    }
  });
  return out;
}

export interface Mark {
  /** Index of the row group. */
  group: number;
  /** Steps covered: first, and one past the last. */
  from: number;
  to: number;
  nan: number;
  inf: number;
}

/** Non-finite cells joined into runs of neighbouring columns, per row group. */
export function marks(heat: HeatHeader, groups: number[][]): Mark[] {
  const groupsOf = Array.from({ length: heat.rows }, () => [] as number[]);
  groups.forEach((rows, group) => rows.forEach((row) => groupsOf[row].push(group)));
  const nans = new Float64Array(groups.length * heat.cols);
  const infs = new Float64Array(groups.length * heat.cols);
  for (const [row, col, nan, inf] of heat.nonfinite) {
    for (const group of groupsOf[row]) {
      nans[group * heat.cols + col] += nan;
      infs[group * heat.cols + col] += inf;
    }
  }
  const out: Mark[] = [];
  for (let group = 0; group < groups.length; group++) {
    let open: Mark | null = null;
    for (let col = 0; col < heat.cols; col++) {
      const nan = nans[group * heat.cols + col];
      const inf = infs[group * heat.cols + col];
      if (!nan && !inf) {
        open = null;
        continue;
      }
      if (!open) out.push((open = { group, from: heat.step[col], to: 0, nan: 0, inf: 0 }));
      open.nan += nan;
      open.inf += inf;
      open.to = heat.step_last[col] + 1;
    }
  }
  return out;
}

export interface Onset {
  row: number;
  step: number;
  nan: number;
  inf: number;
}

/** The first non-finite cell of each row, earliest first: where it broke before where it spread. */
export function onsets(heat: HeatHeader): Onset[] {
  const first = new Map<number, HeatHeader["nonfinite"][number]>();
  for (const cell of heat.nonfinite) {
    const known = first.get(cell[0]);
    if (!known || cell[1] < known[1]) first.set(cell[0], cell);
  }
  return [...first.values()]
    .map(([row, col, nan, inf]) => ({ row, step: heat.step[col], nan, inf }))
    .sort((a, b) => a.step - b.step || a.row - b.row);
}
