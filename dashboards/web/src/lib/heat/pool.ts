/**
 * From cells to pixels without losing an extreme: a pixel shows the most telling cell that
 * falls on it, so one bad step among a hundred thousand is still one visible mark.
 */

import { BAD, NO_DATA, columnAt, type HeatHeader, type Matrix } from "./decode";
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

/** How telling each byte is: no data says least, what is not finite most. */
function weights(of: (byte: number) => number): Float64Array {
  const out = Float64Array.from({ length: 256 }, (_, byte) => of(byte));
  [out[NO_DATA], out[BAD]] = [-1, Infinity];
  return out;
}
const WEIGHTS: Record<Choice, Float64Array> = {
  largest: weights((byte) => byte),
  furthest: weights((byte) => Math.abs(byte - CENTRE)),
};

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
  const { start, end } = columns;
  const width = start.length;
  const weight = WEIGHTS[pick];
  const out = new Uint8Array(groups.length * width);
  groups.forEach((rows, g) => {
    const target = g * width;
    for (const row of rows) {
      const base = row * cols;
      for (let x = 0; x < width; x++) {
        let best = out[target + x];
        for (let c = start[x]; c < end[x]; c++) {
          const byte = cells[base + c];
          if (weight[byte] > weight[best]) best = byte;
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
  /** Inf and no NaN. */
  inf: boolean;
}

const NAN = 1;
const INF = 2;

/**
 * Non-finite cells joined into runs of neighbouring columns, per row group. The cells say
 * where; the header's list, which the service may cut short, only tells Inf from NaN.
 */
export function marks(heat: Matrix, groups: number[][]): Mark[] {
  const { cells, cols } = heat;
  const kind = new Uint8Array(cells.length);
  // First and one past the last sick column of each row: most have none, and few are sick for long.
  const first = new Int32Array(heat.rows).fill(cols);
  const end = new Int32Array(heat.rows);
  const note = (row: number, col: number, what: number) => {
    kind[row * cols + col] = what;
    first[row] = Math.min(first[row], col);
    end[row] = Math.max(end[row], col + 1);
  };
  for (let at = cells.indexOf(BAD); at >= 0; at = cells.indexOf(BAD, at)) {
    for (; cells[at] === BAD; at++) note(Math.floor(at / cols), at % cols, NAN);
  }
  for (const [row, col, nan, inf] of heat.nonfinite) if (!nan && inf) note(row, col, INF);
  const out: Mark[] = [];
  groups.forEach((rows, group) => {
    const from = rows.reduce((least, row) => Math.min(least, first[row]), cols);
    const until = rows.reduce((most, row) => Math.max(most, end[row]), 0);
    if (from >= until) return;
    const joined = new Uint8Array(cols);
    for (const row of rows) {
      for (let col = first[row]; col < end[row]; col++) joined[col] |= kind[row * cols + col];
    }
    let open: Mark | null = null;
    for (let col = from; col < until; col++) {
      if (!joined[col]) {
        open = null;
        continue;
      }
      if (!open) out.push((open = { group, from: heat.step[col], to: 0, inf: true }));
      open.inf &&= joined[col] === INF;
      open.to = heat.step_last[col] + 1;
    }
  });
  return out;
}

export interface Onset {
  row: number;
  step: number;
  /** Elements, where the service listed them. */
  nan: number | null;
  inf: number | null;
}

/** The first non-finite cell of each row, earliest first: where it broke before where it spread. */
export function onsets(heat: Matrix): Onset[] {
  const listed = new Map(heat.nonfinite.map((c) => [c[0] * heat.cols + c[1], c]));
  const out: Onset[] = [];
  for (let row = 0; row < heat.rows; row++) {
    const cell = heat.cells.indexOf(BAD, row * heat.cols);
    if (cell < 0) break;
    const found = Math.floor(cell / heat.cols);
    const known = listed.get(cell);
    out.push({
      row: found, step: heat.step[cell % heat.cols],
      nan: known?.[2] ?? null, inf: known?.[3] ?? null,
    });
    row = found;
  }
  return out.sort((a, b) => a.step - b.step || a.row - b.row);
}
