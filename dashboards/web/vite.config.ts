import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vitest/config";

export default defineConfig({
  plugins: [svelte()],
  build: {
    target: "es2022",
    // The Content-Security-Policy is default-src 'self': nothing may become a data: URI.
    assetsInlineLimit: 0,
    // Six per cent smaller than the default; the first load has a budget (tests/ui).
    minify: "terser",
    rollupOptions: {
      output: {
        // What both pages need, in one piece: small chunks compress badly.
        manualChunks: (id) => (/node_modules\/svelte\/|components\/(State|Banner)|lib\/(format|api|clock)|vite\/preload/.test(id) ? "base" : null),
      },
    },
    terserOptions: { module: true, compress: { passes: 3, pure_getters: true } },
    modulePreload: { polyfill: false },
  },
  test: { include: ["src/**/*.test.ts"], environment: "node" },
});
