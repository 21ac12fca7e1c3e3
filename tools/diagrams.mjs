// Draws the mermaid blocks of docs/ as pictures in docs/diagrams/, so that pages need no network.
//
//   npm install --no-save beautiful-mermaid@1.1.3 && node tools/diagrams.mjs
//
// A picture is named by the first 12 digits of the SHA-256 of its block; docs/gen/diagrams.py puts it
// into the page. Colours are those of the page, in its light and in its dark scheme.

import { createHash } from "node:crypto";
import fs from "node:fs";
import path from "node:path";

import { renderMermaidSVG } from "beautiful-mermaid";

const docs = path.join(import.meta.dirname, "..", "docs");
const pictures = path.join(docs, "diagrams");
const wanted = new Set();

for (const page of fs.readdirSync(docs, { recursive: true }).filter((name) => name.endsWith(".md"))) {
  const text = fs.readFileSync(path.join(docs, page), "utf8");
  for (const [, source] of text.matchAll(/^```mermaid\n(.*?)^```$/gms)) {
    const name = createHash("sha256").update(source).digest("hex").slice(0, 12) + ".svg";
    const drawn = renderMermaidSVG(source, { transparent: true })
      .replace(/^\s*@import .*\n/m, "") // a font of somebody's server
      .replace("'Inter', system-ui, sans-serif", "inherit")
      .replace(/^ {2}(text|svg) \{/gm, "  .diagram $1 {") // the style is the whole page's
      .replace(/ style="--bg:[^"]*"/, "")
      .replace(/[ \t]+$/gm, "");
    fs.writeFileSync(path.join(pictures, name), drawn.trim() + "\n");
    wanted.add(name);
    console.log(`${page}: ${name}`);
  }
}
for (const name of fs.readdirSync(pictures)) {
  if (!wanted.has(name)) fs.unlinkSync(path.join(pictures, name));
}
