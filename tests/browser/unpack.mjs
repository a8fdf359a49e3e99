// Unpacks the pinned Chromium beside its package, with the libraries and the font that a small machine
// may lack.
import { mkdirSync, writeFileSync } from "node:fs";
import { unpacked } from "./chromium.mjs";

if (unpacked) {
  mkdirSync(unpacked, { recursive: true });
  process.env.TMPDIR = unpacked; // where the package unpacks to
  process.env.AWS_LAMBDA_JS_RUNTIME = "nodejs22.x"; // or else it leaves the libraries out
  const { default: chromium } = await import("@sparticuz/chromium");
  await chromium.executablePath();
  // Chromium crashes without any font, and the package's own settings look for it elsewhere.
  const fonts = `<fontconfig><dir>${unpacked}/fonts</dir><cachedir>${unpacked}/font-cache</cachedir></fontconfig>`;
  writeFileSync(`${unpacked}/fonts/fonts.conf`, fonts);
}
