import { describe, expect, it } from "vitest";
import { CENTRE, versusBaseline } from "./baseline";
import { BAD, NO_DATA, columnAt, decode, valueOf, type HeatHeader, type Matrix } from "./decode";
import { held } from "./held";
import { css, diverging, sequential } from "./lut";
import { COLOUR_MAPS } from "./maps";
import { MIN_MARK, span, ticks } from "./paint";
import { marks, onsets, pixelColumns, pool } from "./pool";
import { folded, rows, type Row } from "./rows";
import { Scene, limits, stretch } from "./scene";
import type { LayerFace } from "../schema";

function heat(rowCount: number, cols: number, more: Partial<HeatHeader> = {}): HeatHeader {
  const step = more.step ?? Array.from({ length: cols }, (_, c) => c);
  return {
    rows: rowCount, cols, layers: Array.from({ length: rowCount }, (_, r) => r), step,
    step_last: step, time_ns: step.map(() => null), lo: -4, hi: 1, bucket: 1, nonfinite: [],
    metric: "l2", agg: "max", ...more,
  };
}

function message(header: object, cells: number[]): ArrayBuffer {
  const text = new TextEncoder().encode(JSON.stringify(header));
  const out = new Uint8Array(4 + text.length + cells.length);
  new DataView(out.buffer).setUint32(0, text.length, true);
  out.set(text, 4);
  out.set(cells, 4 + text.length);
  return out.buffer;
}

describe("decode", () => {
  it("reads header and cells", () => {
    const matrix = decode(message(heat(1, 3), [0, 128, 255]));
    expect([...matrix.cells]).toEqual([0, 128, 255]);
    expect(matrix.lo).toBe(-4);
  });
  it("refuses a message cut anywhere", () => {
    const whole = message(heat(1, 3), [0, 128, 255]);
    for (const length of [0, 3, 20, whole.byteLength - 1]) {
      expect(() => decode(whole.slice(0, length))).toThrow(/heatmap/);
    }
  });
  it("gives the ends of the scale back", () => {
    expect(valueOf(heat(1, 1), 1)).toBeCloseTo(1e-4);
    expect(valueOf(heat(1, 1), 254)).toBeCloseTo(10);
    expect(valueOf(heat(1, 1), NO_DATA)).toBeNull();
    expect(valueOf(heat(1, 1), BAD)).toBeNull();
  });
  it("finds the column of a step", () => {
    expect([-1, 0, 15, 16, 99].map((s) => columnAt([0, 16, 32], s))).toEqual([-1, 0, 0, 1, 2]);
  });
});

describe("what is measured in turns", () => {
  it("is held until the next measurement, never before the first", () => {
    expect([...held(Uint8Array.of(0, 9, 0, 0, 7, 0), 6)]).toEqual([0, 9, 9, 9, 7, 7]);
    expect([...held(Uint8Array.of(0, 0, 0, 5), 2)]).toEqual([0, 0, 0, 5]);
  });
  it("is not held for ever where a row is measured no more", () => {
    const cells = Uint8Array.of(9, 0, 9, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0);
    expect([...held(cells, 8)]).toEqual([9, 9, 9, 9, 9, 9, 0, 0, 8, 8, 8, 8, 0, 0, 0, 0]);
  });
  it("is not held past a value that is not finite", () => {
    expect([...held(Uint8Array.of(9, BAD, 0, 4), 4)]).toEqual([9, BAD, 0, 4]);
  });
  it("is told with the column it was measured in, also against its past", () => {
    const matrix = { ...heat(1, 3, { agg: "last" }), cells: Uint8Array.of(100, 0, 50) };
    const row = { members: [0] } as unknown as Row;
    const scene = new Scene(matrix, [row], "base");
    expect([0, 1, 2].map((col) => scene.byte(row, col))).toEqual([100, 100, 50]);
    expect([0, 1, 2].map((col) => scene.measured(row, col))).toEqual([0, 0, 2]);
    expect(scene.deviation(row, 1)).toBe(scene.deviation(row, 0));
  });
});

describe("pooling", () => {
  it("keeps one extreme cell of a hundred thousand at any width", () => {
    const cols = 100_000;
    const cells = new Uint8Array(cols).fill(40);
    cells[77_777] = 250;
    for (const width of [3, 360, 1400, 2800]) {
      const out = pool(cells, cols, [[0]], pixelColumns(heat(1, cols), 0, cols, width), "largest");
      expect(Math.max(...out)).toBe(250);
      expect(out.filter((b) => b === 250).length).toBeLessThanOrEqual(2); // it may straddle
    }
  });
  it("lets a non-finite cell win over everything", () => {
    const out = pool(
      Uint8Array.of(254, 255, 254), 3, [[0]], pixelColumns(heat(1, 3), 0, 3, 1), "largest",
    );
    expect([...out]).toEqual([BAD]);
  });
  it("shows the cell furthest from the baseline when asked to", () => {
    const columns = pixelColumns(heat(1, 3), 0, 3, 1);
    expect([...pool(Uint8Array.of(120, 20, 180), 3, [[0]], columns, "furthest")]).toEqual([20]);
  });
  it("pools the rows of a folded block", () => {
    const columns = pixelColumns(heat(2, 2), 0, 2, 2);
    expect([...pool(Uint8Array.of(1, 9, 8, 2), 2, [[0, 1]], columns, "largest")]).toEqual([8, 9]);
  });
  it("leaves a gap in the steps empty", () => {
    const gap = heat(1, 2, { step: [0, 10], step_last: [0, 10] });
    const out = pool(Uint8Array.of(7, 9), 2, [[0]], pixelColumns(gap, 0, 11, 11), "largest");
    expect([...out]).toEqual([7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
  });
  it("spreads one wide column over its pixels", () => {
    const wide = heat(1, 2, { step: [0, 4], step_last: [3, 7] });
    const out = pool(Uint8Array.of(7, 9), 2, [[0]], pixelColumns(wide, 0, 8, 4), "largest");
    expect([...out]).toEqual([7, 7, 9, 9]);
  });
});

describe("non-finite marks", () => {
  const cells = new Uint8Array(18).fill(9);
  for (const cell of [8, 9, 3, 17]) cells[cell] = BAD;
  const sick: Matrix = { ...heat(3, 6, { nonfinite: [[1, 2, 40, 0], [2, 5, 0, 7]] }), cells };
  it("join neighbours, and tell Inf alone from NaN", () => {
    expect(marks(sick, [[0, 1], [2]])).toEqual([
      { group: 0, from: 2, to: 4, inf: false },
      { group: 1, from: 5, to: 6, inf: true },
    ]);
  });
  it("are told by row where they begin, earliest first, with counts where they are known", () => {
    expect(onsets(sick)).toEqual([
      { row: 1, step: 2, nan: 40, inf: 0 },
      { row: 0, step: 3, nan: null, inf: null },
      { row: 2, step: 5, nan: 0, inf: 7 },
    ]);
  });
  it("are at least three pixels wide at every zoom, also at the edges", () => {
    for (const from of [0, 5, 99_999]) {
      const frame = { width: 360, tops: [0, 4], from: 0, to: 100_000, ratio: 1 };
      const at = span({ group: 0, from, to: from + 1, inf: false }, frame)!;
      expect(at[1] - at[0]).toBeGreaterThanOrEqual(MIN_MARK - 1e-9);
      expect(at[0]).toBeGreaterThanOrEqual(-1e-9);
      expect(at[1]).toBeLessThanOrEqual(360 + 1e-9);
    }
  });
});

describe("vs baseline", () => {
  it("is level for a steady row and loud for a jump of one decade", () => {
    const cells = new Uint8Array(200).fill(100);
    cells[150] = 100 + 50;
    const out = versusBaseline(cells, 200, 1 / 50);
    expect(Math.abs(out[149] - CENTRE)).toBeLessThanOrEqual(0.5);
    expect(out[150]).toBe(Math.round(CENTRE + 126.5 / 3));
    expect(Math.abs(out[151] - CENTRE)).toBeLessThanOrEqual(0.5);
  });
  it("agrees with a slow median for any row", () => {
    let seed = 9;
    const random = () => (seed = (seed * 1664525 + 1013904223) >>> 0) / 2 ** 32;
    const cells = Uint8Array.from({ length: 300 }, () => 1 + Math.floor(random() * 254));
    const out = versusBaseline(cells, 300, 0.001, 16);
    for (let c = 1; c < 300; c++) {
      const past = [...cells.slice(Math.max(0, c - 16), c)].sort((a, b) => a - b);
      const median = past[Math.ceil(past.length / 2) - 1];
      const wanted = Math.round(CENTRE + (cells[c] - median) * 0.001 * (126.5 / 3));
      expect(out[c]).toBe(Math.max(1, Math.min(254, wanted)));
    }
  });
  it("passes what is not a number through, and never counts it as past", () => {
    expect([...versusBaseline(Uint8Array.of(0, 255, 80, 80), 4, 0.02)]).toEqual([0, 255, 128, 128]);
  });
});

describe("colour", () => {
  it("keeps no data transparent and magenta for the non-finite alone", () => {
    expect(sequential()[0]).toBe(0);
    for (const map of COLOUR_MAPS) {
      expect(sequential(map)[0]).toBe(0);
      expect(css(sequential(map), 255)).toBe("rgb(255 43 214)");
      expect(sequential(map)).toBe(sequential(map));
    }
    expect(css(sequential(), 255)).toBe("rgb(255 43 214)");
    expect(css(sequential(), 1)).toBe("rgb(0 34 78)");
    expect(css(sequential(), 254)).toBe("rgb(254 232 56)");
  });
  it("diverges from the ground of the theme", () => {
    const table = diverging("#101418");
    expect([127, 128].map((byte) => css(table, byte))).toEqual(Array(2).fill("rgb(16 20 24)"));
    expect([1, 254].map((byte) => css(table, byte))).toEqual(["rgb(44 123 182)", "rgb(230 97 1)"]);
    expect([css(table, 0), css(table, 255)]).toEqual(["rgb(0 0 0)", "rgb(255 43 214)"]);
  });
  it("takes its ends from what is visible and counts what lies outside", () => {
    const bytes = new Uint8Array(1000).map((_, k) => 50 + (k % 100));
    bytes[0] = 254;
    const shades = limits(bytes, "abs");
    expect(shades.high).toBeLessThan(160);
    expect(shades.above).toBeGreaterThan(0);
    const table = stretch(sequential(), shades);
    expect(table[254]).toBe(sequential()[254]);
    expect(table[shades.low]).toBe(sequential()[1]);
    expect(table[BAD]).toBe(sequential()[BAD]);
  });
  it("does not blow noise up to the whole map", () => {
    const shades = limits(new Uint8Array(100).map((_, k) => 100 + (k % 2)), "abs");
    expect(shades.high - shades.low).toBeGreaterThanOrEqual(12);
  });
});

describe("rows", () => {
  const layer = (i: number, block: string, name: string): LayerFace => ({
    i, block, name, layer: name, kind: "Linear", params: 4, dtype: "float32",
  });
  const layers = [
    layer(0, "embed", "embed.weight"),
    layer(1, "blocks.0", "blocks.0.fc.weight"),
    layer(2, "blocks.0", "blocks.0.fc.bias"),
  ];
  const at = new Map([[0, 0], [1, 1], [2, 2]]);
  it("show blocks in model order with short names below", () => {
    const labels = rows(layers, new Set(), at).map((row) => row.label);
    expect(labels).toEqual(["embed.weight", "blocks.0", "fc.weight", "fc.bias"]);
  });
  it("fold to one row that pools its parameters", () => {
    const out = rows(layers, new Set(["blocks.0"]), at);
    expect(out.map((row) => row.members)).toEqual([[0], [1, 2]]);
  });
  it("of a large model are folded, but for the block that is sick", () => {
    const many = Array.from({ length: 100 }, (_, k) => layer(k, `b${k >> 1}`, `b${k >> 1}.p${k}`));
    const closed = folded(many, "auto", new Set([51]));
    expect(closed.size).toBe(49);
    expect(closed.has("b25")).toBe(false);
  });
});

describe("ticks", () => {
  it("are round, inside, and never a fraction of a step", () => {
    expect(ticks(0, 4000, 900)).toEqual([0, 500, 1000, 1500, 2000, 2500, 3000, 3500]);
    expect(ticks(41_777, 41_781, 900)).toEqual([41_777, 41_778, 41_779, 41_780]);
  });
});
