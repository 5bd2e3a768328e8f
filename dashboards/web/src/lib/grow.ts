/** Data over steps that grows at its end: which part is new, and old and new joined. Pure. */

import type { EventList, SeriesFace } from "./schema";
import type { Matrix } from "./heat/decode";

/** Columns fetched again with the new ones: a rank that lags fills them a little later. */
const OVERLAP = 8;

export interface Part {
  from: number;
  /** Columns from there on. */
  count: number;
}

/** Steps per column by which the service lays [first, last] out: the least power of two that fits. */
export function widthOf(first: number, last: number, limit: number): number {
  let width = 1;
  while (Math.floor(last / width) - Math.floor(first / width) + 1 > limit) width *= 2;
  return width;
}

/**
 * What to fetch so that columns beginning at `steps` reach `last`; null where all of it has to
 * be: nothing is held, or it was laid out in columns of another width.
 */
export function missing(steps: number[], width: number, last: number, limit: number): Part | null {
  if (!steps.length || widthOf(steps[0], last, limit) !== width) return null;
  const from = steps[Math.max(0, steps.length - OVERLAP)];
  // What was fetched a moment ago may reach further than the news that are acted on now.
  const end = Math.max(last, steps[steps.length - 1]);
  return { from, count: Math.floor(end / width) - Math.floor(from / width) + 1 };
}

/** How many of the held columns stand before the new ones. */
function kept(held: number[], more: number[]): number {
  let at = held.length;
  while (at > 0 && held[at - 1] >= more[0]) at--;
  return at;
}

export function joinSeries(held: SeriesFace, more: SeriesFace): SeriesFace {
  if (!more.step.length) return held;
  const at = kept(held.step, more.step);
  const join = <T>(a: T[], b: T[]) => [...a.slice(0, at), ...b];
  const keys: SeriesFace["keys"] = {};
  for (const [key, old] of Object.entries(held.keys)) {
    const fresh = more.keys[key];
    keys[key] = {
      min: join(old.min, fresh.min), max: join(old.max, fresh.max), last: join(old.last, fresh.last),
      nonfinite: join(old.nonfinite, fresh.nonfinite),
    };
  }
  return {
    step: join(held.step, more.step),
    time_ns: join(held.time_ns, more.time_ns),
    keys,
    reported: [...new Set([...held.reported, ...more.reported])].sort(),
  };
}

/** Bytes of one scale as bytes of another; where nothing and what is not finite stay themselves. */
function rescale(from: Matrix, lo: number, hi: number): Uint8Array {
  const table = Uint8Array.from({ length: 256 }, (_, byte) => {
    if (byte === 0 || byte === 255) return byte;
    const log = from.lo! + ((byte - 1) / 253) * (from.hi! - from.lo!);
    return Math.max(1, Math.min(254, 1 + Math.round(((log - lo) / (hi - lo || 1)) * 253)));
  });
  return from.cells.map((byte) => table[byte]);
}

/** Decades added beyond a new extreme, so that a slow rise does not rescale at every step. */
const HEADROOM = 0.25;

/** Both together, or null where they do not belong to one picture. */
export function joinHeat(held: Matrix, more: Matrix): Matrix | null {
  if (!more.cols) return held;
  const fits = held.rows === more.rows && held.metric === more.metric && held.agg === more.agg;
  // A single column was laid out no wider than it needs to be.
  if (!fits || (held.bucket !== more.bucket && more.cols > 1)) return null;
  const at = kept(held.step, more.step);
  let [lo, hi] = [held.lo!, held.hi!];
  const blank = more.lo === 0 && more.hi === 0; // it has no positive value at all
  if (!blank && more.lo! < lo) lo = more.lo! - HEADROOM;
  if (!blank && more.hi! > hi) hi = more.hi! + HEADROOM;
  const old = lo === held.lo && hi === held.hi ? held.cells : rescale(held, lo, hi);
  const fresh = blank ? more.cells : rescale(more, lo, hi);
  const cols = at + more.cols;
  const cells = new Uint8Array(held.rows * cols);
  for (let row = 0; row < held.rows; row++) {
    cells.set(old.subarray(row * held.cols, row * held.cols + at), row * cols);
    cells.set(fresh.subarray(row * more.cols, (row + 1) * more.cols), row * cols + at);
  }
  const join = <T>(a: T[], b: T[]) => [...a.slice(0, at), ...b];
  return {
    ...held, cols, lo, hi, cells,
    step: join(held.step, more.step),
    step_last: join(held.step_last, more.step_last),
    time_ns: join(held.time_ns, more.time_ns),
    nonfinite: [
      ...held.nonfinite.filter((cell) => cell[1] < at),
      ...more.nonfinite.map(([row, col, nan, inf]): Matrix["nonfinite"][number] => [row, col + at, nan, inf]),
    ],
  };
}

/** Events of steps from `from` on come anew with `more`. */
export function joinEvents(held: EventList, more: EventList, from: number): EventList {
  return { items: [...held.items.filter((event) => event.step < from), ...more.items] };
}
