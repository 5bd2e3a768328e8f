/** Colour maps that people may choose for heatmaps of values. */
export const COLOUR_MAPS = ["cividis", "viridis", "inferno", "grey"] as const;
export type ColourMap = (typeof COLOUR_MAPS)[number];
