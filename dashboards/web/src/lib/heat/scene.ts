/** Everything the heatmap paints, computed from the matrix; no DOM, no framework. */

import { DECADES, versusBaseline } from "./baseline";
import { BAD, NO_DATA, type Matrix } from "./decode";
import { held } from "./held";
import { marks, pixelColumns, pool, type Mark } from "./pool";
import type { Row } from "./rows";
import type { Mode } from "../urlstate";

/** A painted window: one pixel column per screen column, one line per row. */
export interface Texture {
  from: number;
  to: number;
  width: number;
  rows: number;
  bytes: Uint8Array;
}

export interface Limits {
  /** Bytes drawn at the two ends of the map. */
  low: number;
  high: number;
  below: number;
  above: number;
}

export class Scene {
  readonly marks: Mark[];
  /** The same, of all rows together: the NaN lane. */
  readonly lane: Mark[];
  readonly #cells: Uint8Array;
  readonly #absolute: Uint8Array;

  constructor(
    readonly matrix: Matrix,
    readonly rows: Row[],
    readonly mode: Mode,
  ) {
    const perByte = ((matrix.hi ?? 0) - (matrix.lo ?? 0)) / 253;
    const keep = (cells: Uint8Array) => (matrix.agg === "last" ? held(cells, matrix.cols) : cells);
    this.#absolute = keep(matrix.cells);
    this.#cells =
      mode === "base" ? keep(versusBaseline(matrix.cells, matrix.cols, perByte)) : this.#absolute;
    const groups = rows.map((row) => row.members);
    this.marks = marks(matrix, groups);
    this.lane = marks(matrix, [Array.from({ length: matrix.rows }, (_, row) => row)]);
  }

  texture(from: number, to: number, width: number): Texture {
    const columns = pixelColumns(this.matrix, from, to, width);
    const pick = this.mode === "base" ? "furthest" : "largest";
    const groups = this.rows.map((row) => row.members);
    const bytes = pool(this.#cells, this.matrix.cols, groups, columns, pick);
    return { from, to, width, rows: this.rows.length, bytes };
  }

  /** The byte shown by `row` at column `col`: of its members the largest, or a non-finite one. */
  byte(row: Row, col: number): number {
    let best = NO_DATA;
    for (const member of row.members) {
      best = Math.max(best, this.#absolute[member * this.matrix.cols + col]);
    }
    return best;
  }

  /** The column in which the value shown at column `col` of a single parameter was measured. */
  measured(row: Row, col: number): number {
    const start = row.members[0] * this.matrix.cols;
    let at = col;
    while (row.members.length === 1 && at > 0 && this.matrix.cells[start + at] === NO_DATA) at--;
    return at;
  }

  /** Decades above or below the row's own past; null where there is no number. */
  deviation(row: Row, col: number): number | null {
    if (this.mode !== "base" || row.members.length !== 1) return null;
    const byte = this.#cells[row.members[0] * this.matrix.cols + col];
    return byte === NO_DATA || byte === BAD ? null : ((byte - 127.5) / 126.5) * DECADES;
  }

  /** NaN and Inf elements of `row` at column `col`. */
  nonfinite(row: Row, col: number): [number, number] {
    let [nan, inf] = [0, 0];
    for (const [r, c, n, i] of this.matrix.nonfinite) {
      if (c === col && row.members.includes(r)) [nan, inf] = [nan + n, inf + i];
    }
    return [nan, inf];
  }
}

/** The 1st to 99th percentile of what is visible, and how much lies outside. */
export function limits(bytes: Uint8Array, mode: Mode): Limits {
  if (mode === "base") return { low: 1, high: 254, below: 0, above: 0 };
  const counts = new Uint32Array(256);
  for (const byte of bytes) counts[byte]++;
  let total = 0;
  for (let b = 1; b < 255; b++) total += counts[b];
  let [low, high, below, above] = [1, 254, 0, 0];
  while (low < 254 && below + counts[low] <= total * 0.01) below += counts[low++];
  while (high > low && above + counts[high] <= total * 0.01) above += counts[high--];
  if (high - low < 12) {
    // Nearly one value: keep a width, so that noise does not fill the whole map.
    const middle = (low + high) / 2;
    [low, high] = [Math.max(1, Math.floor(middle - 6)), Math.min(254, Math.ceil(middle + 6))];
    [below, above] = [0, 0];
  }
  return { low, high, below, above };
}

/** `table` with its ends moved to the limits. */
export function stretch(table: Uint32Array, { low, high }: Limits): Uint32Array {
  const out = new Uint32Array(256);
  for (let byte = 1; byte < 255; byte++) {
    const t = Math.max(0, Math.min(1, (byte - low) / Math.max(1, high - low)));
    out[byte] = table[1 + Math.round(t * 253)];
  }
  out[BAD] = table[BAD];
  return out;
}
