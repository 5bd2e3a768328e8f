/** What one cell of the heatmap says, in words: the tooltip and the screen reader get the same. */

import * as f from "../format";
import { METRICS, type Metric } from "../urlstate";
import { BAD, NO_DATA, columnAt, valueOf, type Matrix } from "./decode";
import type { Row } from "./rows";
import type { Scene } from "./scene";

export interface Said {
  name: string;
  steps: string;
  what: string;
  /** Something in it is not finite. */
  bad: boolean;
}

/** The steps of the column that begins at `step`: exact where a column is one step. */
export function bucketOf(matrix: Matrix, step: number): string {
  const last = matrix.step_last[columnAt(matrix.step, step)];
  return last > step ? `${f.step(step)}–${f.step(last)}` : f.step(step);
}

export function say(scene: Scene, row: Row, step: number, metric: Metric): Said {
  const { matrix } = scene;
  const col = columnAt(matrix.step, step);
  const known = col >= 0 && matrix.step_last[col] >= step;
  const [nan, inf] = known ? scene.nonfinite(row, col) : [0, 0];
  const byte = known ? scene.byte(row, col) : 0;
  const of = row.parameter ? ` of ${f.step(row.parameter.params)}` : "";
  const parts = [];
  if (nan) parts.push(`NaN in ${f.step(nan)}${of}`);
  if (inf) parts.push(`Inf in ${f.step(inf)}${of}`);
  const value = valueOf(matrix, byte);
  if (value !== null) parts.push(`${METRICS[metric].unit} ${f.value(value)}`);
  const measured = value !== null && matrix.agg === "last" ? scene.measured(row, col) : col;
  if (measured !== col) parts.push(`measured at step ${bucketOf(matrix, matrix.step[measured])}`);
  const shift = known ? scene.deviation(row, col) : null;
  if (shift !== null) parts.push(`${shift < 0 ? "−" : "+"}${Math.abs(shift).toFixed(1)} decades vs its past`);
  if (!parts.length) parts.push(nothing(byte, matrix));
  const last = known ? matrix.step_last[col] : step;
  return {
    name: row.parameter?.name ?? `block ${row.block}${row.members.length > 1 ? `, largest of ${row.members.length}` : ""}`,
    steps: known && last > matrix.step[col] ? `steps ${f.step(matrix.step[col])} to ${f.step(last)}` : `step ${f.step(step)}`,
    what: parts.join(" · "),
    bad: nan + inf > 0 || byte === BAD,
  };
}

function nothing(byte: number, matrix: Matrix): string {
  if (byte === BAD) return "not finite";
  return byte === NO_DATA && matrix.agg === "last" ? "not measured yet, or no more" : "no data";
}
