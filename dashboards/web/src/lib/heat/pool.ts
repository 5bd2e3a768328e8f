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
  const byRow = new Map<number, [number, number, number, number][]>();
  for (const cell of heat.nonfinite) {
    const list = byRow.get(cell[0]);
    if (list) list.push(cell);
    else byRow.set(cell[0], [cell]);
  }
  const out: Mark[] = [];
  groups.forEach((rows, group) => {
    const cells = rows.flatMap((row) => byRow.get(row) ?? []).sort((a, b) => a[1] - b[1]);
    let open: (Mark & { col: number }) | null = null;
    for (const [, col, nan, inf] of cells) {
      if (open && col <= open.col + 1) {
        open.nan += nan;
        open.inf += inf;
      } else {
        open = { group, from: heat.step[col], to: 0, nan, inf, col };
        out.push(open);
      }
      open.col = col;
      open.to = heat.step_last[col] + 1;
    }
  });
  return out;
}
