/** Colours of cell bytes, as little-endian RGBA words ready for ImageData. */

import type { ColourMap } from "./maps";

type Rgb = [number, number, number];

const ANCHORS: Record<ColourMap, Rgb[]> = {
  // Made for colour-blind readers, and furthest from the NaN magenta: the default.
  cividis: [
    [0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115],
    [138, 134, 120], [165, 156, 116], [195, 179, 105], [225, 204, 85], [254, 232, 56],
  ],
  viridis: [
    [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142],
    [31, 158, 137], [53, 183, 121], [110, 206, 88], [181, 222, 43], [253, 231, 37],
  ],
  inferno: [
    [0, 0, 4], [27, 12, 65], [74, 12, 107], [120, 28, 109], [165, 44, 96],
    [207, 68, 70], [237, 105, 37], [251, 155, 6], [247, 209, 61], [252, 255, 164],
  ],
  grey: [[28, 28, 28], [236, 236, 236]],
};
const BLUE: Rgb = [44, 123, 182];
const ORANGE: Rgb = [230, 97, 1];
export const MAGENTA: Rgb = [255, 43, 214];

function word([r, g, b]: Rgb): number {
  return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
}

function between(a: Rgb, b: Rgb, t: number): Rgb {
  return [0, 1, 2].map((k) => Math.round(a[k] + (b[k] - a[k]) * t)) as Rgb;
}

function ramp(anchors: Rgb[]): Uint32Array {
  const table = new Uint32Array(256);
  for (let byte = 1; byte < 255; byte++) {
    const at = ((byte - 1) / 253) * (anchors.length - 1);
    const k = Math.min(anchors.length - 2, Math.floor(at));
    table[byte] = word(between(anchors[k], anchors[k + 1], at - k));
  }
  table[255] = word(MAGENTA);
  return table; // byte 0 stays transparent: the hatch behind it shows
}

const RAMPS = new Map<ColourMap, Uint32Array>();

/** The colours of a map; the same table for the same name. */
export function sequential(map: ColourMap = "cividis"): Uint32Array {
  const table = RAMPS.get(map) ?? ramp(ANCHORS[map]);
  RAMPS.set(map, table);
  return table;
}

/**
 * From the ground to blue below and to orange above. Steeper near the middle than a straight
 * line, so that a third of a decade is seen and three decades still have room.
 */
export function diverging(ground: string): Uint32Array {
  const middle = [1, 3, 5].map((k) => parseInt(ground.slice(k, k + 2), 16)) as Rgb;
  const table = ramp([middle, middle]);
  for (let byte = 1; byte < 255; byte++) {
    const away = Math.max(0, (Math.abs(byte - 127.5) - 0.5) / 126);
    table[byte] = word(between(middle, byte < 128 ? BLUE : ORANGE, away ** 0.65));
  }
  return table;
}

/** The colour of one byte for CSS. */
export function css(table: Uint32Array, byte: number): string {
  const c = table[byte];
  return `rgb(${c & 255} ${(c >> 8) & 255} ${(c >> 16) & 255})`;
}
