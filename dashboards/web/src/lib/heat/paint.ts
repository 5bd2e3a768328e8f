/** Canvas strokes of the heatmap. Positions arrive in CSS pixels; `ratio` makes them sharp. */

import type { Palette } from "../theme.svelte";
import type { Mode } from "../urlstate";
import type { Texture } from "./scene";
import type { Mark } from "./pool";

/** Where each row lies: `tops` has one entry more than there are rows. */
export interface Frame {
  width: number;
  tops: number[];
  from: number;
  to: number;
  ratio: number;
}

export const MIN_MARK = 3;

export function context(canvas: HTMLCanvasElement, width: number, height: number, ratio: number) {
  const [w, h] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
  }
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const g = canvas.getContext("2d")!;
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, width, height);
  return g;
}

/** 45 degree hatch: where nothing is known, so that it never reads as a small number. */
export function hatch(g: CanvasRenderingContext2D, palette: Palette, width: number, height: number) {
  g.fillStyle = palette.panel;
  g.fillRect(0, 0, width, height);
  g.strokeStyle = palette.hatch;
  g.lineWidth = 1;
  g.beginPath();
  for (let x = -height; x < width; x += 7) {
    g.moveTo(x, height);
    g.lineTo(x + height, 0);
  }
  g.stroke();
}

/** The texture as an image of its own pixels, ready to be stretched. */
export function bake(texture: Texture, table: Uint32Array): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  canvas.width = texture.width;
  canvas.height = Math.max(1, texture.rows);
  const g = canvas.getContext("2d")!;
  const image = g.createImageData(canvas.width, canvas.height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let k = 0; k < texture.bytes.length; k++) pixels[k] = table[texture.bytes[k]];
  g.putImageData(image, 0, 0);
  return canvas;
}

/** Stretch the baked window over the frame, wherever the frame has moved to since. */
export function blit(
  g: CanvasRenderingContext2D,
  image: HTMLCanvasElement,
  texture: Texture,
  frame: Frame,
) {
  g.imageSmoothingEnabled = false;
  const scale = frame.width / (frame.to - frame.from);
  const left = (texture.from - frame.from) * scale;
  const width = (texture.to - texture.from) * scale;
  const tall = (row: number) => frame.tops[row + 1] - frame.tops[row];
  for (let row = 0, end = 1; row < texture.rows; row = end++) {
    // Neighbours of one height go in one call: hundreds of calls would cost the frame.
    while (end < texture.rows && tall(end) === tall(row)) end++;
    const top = frame.tops[row];
    const height = frame.tops[end] - top;
    g.drawImage(image, 0, row, texture.width, end - row, left, top, width, height);
  }
}

/**
 * Left and right edge of a mark, on whole device pixels so that nothing is blended away, and
 * never closer than MIN_MARK; null when out of sight.
 */
export function span(mark: Mark, frame: Frame): [number, number] | null {
  const scale = frame.width / (frame.to - frame.from);
  let left = (mark.from - frame.from) * scale;
  let right = (mark.to - frame.from) * scale;
  if (right < 0 || left > frame.width) return null;
  if (right - left < MIN_MARK) {
    const middle = (left + right - MIN_MARK) / 2;
    left = Math.max(0, Math.min(frame.width - MIN_MARK, middle));
    right = left + MIN_MARK;
  }
  const snap = (x: number) => Math.round(x * frame.ratio) / frame.ratio;
  return [snap(Math.max(-4, left)), snap(Math.min(frame.width + 4, right))];
}

/** Non-finite cells: magenta with an edge that survives every map, theme and colour vision. */
export function paintMarks(
  g: CanvasRenderingContext2D,
  marks: Mark[],
  frame: Frame,
  palette: Palette,
  mode: Mode,
) {
  const edge = mode === "base" ? 2 : 1;
  for (const mark of marks) {
    const at = span(mark, frame);
    if (!at) continue;
    const [left, right] = at;
    const top = frame.tops[mark.group];
    const height = frame.tops[mark.group + 1] - top;
    g.fillStyle = mode === "base" ? palette.edge : "#ffffff";
    if (right - left <= 12) g.fillRect(left - edge, top, right - left + 2 * edge, height);
    else g.fillRect(left - edge, top, edge, height); // a long one is edged at its onset
    g.fillStyle = palette.bad;
    g.fillRect(left, top, right - left, height);
    if (right - left > 12 && height >= 10) glyph(g, mark.inf, left + 7, top + height / 2, 5, "#ffffff");
  }
}

/** Beside the first mark of a lane: its glyph and step, on whichever side has room. */
export function onset(
  g: CanvasRenderingContext2D,
  mark: Mark,
  frame: Frame,
  text: string,
  palette: Palette,
) {
  const at = span(mark, frame);
  if (!at) return;
  g.font = "11px system-ui";
  const room = g.measureText(text).width + 22;
  const left = at[0] > room;
  if (!left && at[1] + room > frame.width) return;
  const y = frame.tops[1] / 2;
  glyph(g, mark.inf, left ? at[0] - 9 : at[1] + 9, y, 7, palette.bad);
  g.fillStyle = palette.text;
  g.textBaseline = "middle";
  g.textAlign = left ? "right" : "left";
  g.fillText(text, left ? at[0] - 17 : at[1] + 17, y + 0.5);
}

/** A cross says NaN, a triangle says Inf. */
export function glyph(
  g: CanvasRenderingContext2D,
  inf: boolean,
  x: number,
  y: number,
  size: number,
  colour: string,
) {
  const r = size / 2;
  g.strokeStyle = g.fillStyle = colour;
  g.lineWidth = 1.6;
  g.beginPath();
  if (!inf) {
    g.moveTo(x - r, y - r);
    g.lineTo(x + r, y + r);
    g.moveTo(x + r, y - r);
    g.lineTo(x - r, y + r);
    g.stroke();
  } else {
    g.moveTo(x, y - r);
    g.lineTo(x + r, y + r);
    g.lineTo(x - r, y + r);
    g.fill();
  }
}

/** Round numbers on an axis: about one per `every` pixels, never a fraction of a step. */
export function ticks(from: number, to: number, width: number, every = 90): number[] {
  const rough = Math.max(1, ((to - from) / Math.max(1, width)) * every);
  const power = 10 ** Math.floor(Math.log10(rough));
  const unit = Math.max(1, [1, 2, 5, 10].find((m) => m * power >= rough)! * power);
  const out = [];
  for (let t = Math.ceil(from / unit) * unit; t < to; t += unit) out.push(t);
  return out;
}
