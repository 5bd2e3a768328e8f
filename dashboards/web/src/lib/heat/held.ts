/** Quantities that are measured in turns, a few rows at a time: what a row was last known to be. */

import { BAD, NO_DATA } from "./decode";

/**
 * Each cell without a value takes that of its row's last measured cell, for twice as long as
 * any row waited between two measurements: one that is never measured again does not look well.
 * What is not finite is an event and stays where it is.
 */
export function held(cells: Uint8Array, cols: number): Uint8Array {
  const gap = longest(cells, cols);
  const reach = gap ? 2 * gap : cols;
  const out = cells.slice();
  for (let start = 0; start < cells.length; start += cols) {
    let [value, age] = [NO_DATA, 0];
    for (let c = start; c < start + cols; c++) {
      if (cells[c] !== NO_DATA) [value, age] = [cells[c] === BAD ? NO_DATA : cells[c], 0];
      else if (++age < reach) out[c] = value;
    }
  }
  return out;
}

/** The most columns from one measured cell of a row to the next; 0 where no row has two. */
function longest(cells: Uint8Array, cols: number): number {
  let most = 0;
  for (let start = 0; start < cells.length; start += cols) {
    let last = -1;
    for (let c = start; c < start + cols; c++) {
      if (cells[c] === NO_DATA) continue;
      if (last >= 0) most = Math.max(most, c - last);
      last = c;
    }
  }
  return most;
}
