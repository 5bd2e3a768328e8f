/**
 * "vs baseline": each cell against the median of its own row's recent past, because rows live
 * at different levels and a stripe that was always bright is not news.
 */

import { BAD, NO_DATA } from "./decode";

/** Decades that fill half of the diverging map. */
export const DECADES = 3;
/** Columns of past that make the median. */
export const WINDOW = 64;
export const CENTRE = 127.5;

/** Median of the last `size` bytes, kept by counting: a push costs a few steps, not a sort. */
class TrailingMedian {
  #counts = new Uint16Array(256);
  #past: Uint8Array;
  #seen = 0;
  #median = 0;
  #upTo = 0; // how many are <= #median

  constructor(size: number) {
    this.#past = new Uint8Array(size);
  }

  /** Null before the first push. */
  get value(): number | null {
    return this.#seen ? this.#median : null;
  }

  push(byte: number): void {
    const slot = this.#seen % this.#past.length;
    if (this.#seen >= this.#past.length) this.#count(this.#past[slot], -1);
    this.#past[slot] = byte;
    this.#count(byte, 1);
    this.#seen++;
    const half = (Math.min(this.#seen, this.#past.length) + 1) >> 1;
    while (this.#upTo < half) this.#upTo += this.#counts[++this.#median];
    while (this.#upTo - this.#counts[this.#median] >= half)
      this.#upTo -= this.#counts[this.#median--];
  }

  #count(byte: number, by: 1 | -1): void {
    this.#counts[byte] += by;
    if (byte <= this.#median) this.#upTo += by;
  }
}

/**
 * Bytes 1..254 around CENTRE, linear in decades above or below the trailing median of up to
 * `window` finite cells before; the first cell of a row is its own baseline.
 */
export function versusBaseline(
  cells: Uint8Array,
  cols: number,
  decadesPerByte: number,
  window = WINDOW,
): Uint8Array {
  const out = new Uint8Array(cells.length);
  const scale = (126.5 / DECADES) * decadesPerByte;
  for (let start = 0; start < cells.length; start += cols) {
    const past = new TrailingMedian(window);
    for (let c = start; c < start + cols; c++) {
      const byte = cells[c];
      if (byte === NO_DATA || byte === BAD) {
        out[c] = byte;
        continue;
      }
      const shift = byte - (past.value ?? byte);
      out[c] = Math.max(1, Math.min(254, Math.round(CENTRE + shift * scale)));
      past.push(byte);
    }
  }
  return out;
}
