/** The heatmap's binary answer: u32 header length, JSON header, then one byte per cell. */

export interface HeatHeader {
  rows: number;
  cols: number;
  /** Parameter index of each row. */
  layers: number[];
  /** First and last step of each column. */
  step: number[];
  step_last: number[];
  time_ns: (number | null)[];
  /** log10 of the smallest and largest finite positive value: bytes 1 and 254. */
  lo: number | null;
  hi: number | null;
  /** Steps per column. */
  bucket: number;
  /** [row, column, NaN count, Inf count]. */
  nonfinite: [number, number, number, number][];
  metric: string;
  /** How the steps of a column became one cell: the largest, or the last that was measured. */
  agg: "max" | "last";
}

export interface Matrix extends HeatHeader {
  /** rows * cols: 0 no data, 1..254 linear in log10, 255 not finite. */
  cells: Uint8Array;
}

export const NO_DATA = 0;
export const BAD = 255;

export function decode(buffer: ArrayBuffer): Matrix {
  const head = buffer.byteLength < 4 ? -1 : new DataView(buffer).getUint32(0, true);
  if (head < 0 || 4 + head > buffer.byteLength) throw new Error("heatmap: truncated header");
  const text = new TextDecoder().decode(new Uint8Array(buffer, 4, head));
  const header = JSON.parse(text) as HeatHeader;
  const cells = new Uint8Array(buffer, 4 + head);
  if (cells.length !== header.rows * header.cols) {
    throw new Error(`heatmap: ${cells.length} cells, expected ${header.rows * header.cols}`);
  }
  return { ...header, cells };
}

/** The value a byte stands for, or null where it stands for none. */
export function valueOf(matrix: HeatHeader, byte: number): number | null {
  if (byte === NO_DATA || byte === BAD || matrix.lo === null || matrix.hi === null) return null;
  return 10 ** (matrix.lo + ((byte - 1) / 253) * (matrix.hi - matrix.lo));
}

/** Column that holds `step`, or the nearest one before it; -1 before the first. */
export function columnAt(steps: number[], step: number): number {
  let low = 0;
  let high = steps.length;
  while (low < high) {
    const mid = (low + high) >> 1;
    if (steps[mid] <= step) low = mid + 1;
    else high = mid;
  }
  return low - 1;
}
