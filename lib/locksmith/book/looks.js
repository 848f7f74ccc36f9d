// Visits pages in a frame, in light and dark, and writes what is wrong with each into this page.
// Before it, `pages` ([{name, url}]), `axe` (the script's address) and `phone` (pixels) are set.

const STILL = "*, *::before, *::after { animation: none !important; transition: none !important }";

function element(parent, name, set) {
  return new Promise((resolve, reject) => {
    const made = Object.assign(parent.ownerDocument.createElement(name), set);
    made.onload = () => resolve(made);
    made.onerror = () => reject(new Error(`${set.src} cannot be loaded`));
    parent.append(made);
  });
}

// The innermost blocks whose content reaches beyond the right edge, where nothing around them scrolls.
function wide(doc) {
  const edge = doc.documentElement.clientWidth + 1;
  const out = e => e.clientWidth && e.getBoundingClientRect().left + e.scrollWidth > edge;
  const scrolls = e => e && e !== doc.body && (getComputedStyle(e).overflowX !== "visible"
    || getComputedStyle(e).position === "fixed" || scrolls(e.parentElement));
  return [...doc.body.querySelectorAll("*")].filter(
    e => out(e) && !scrolls(e) && ![...e.children].some(out));
}

async function look(page, theme) {
  localStorage.setItem("mode", theme);  // as the theme's own switch does
  localStorage.setItem("theme", theme);
  const frame = document.createElement("iframe");
  frame.style = "width: 1280px; height: 900px; border: 0";
  await new Promise(resolve => {
    frame.onload = resolve;
    frame.src = page.url;
    document.body.append(frame);
  });
  const doc = frame.contentDocument, found = [];
  doc.head.append(Object.assign(doc.createElement("style"), {textContent: STILL}));
  doc.querySelectorAll("details").forEach(e => { e.open = true; });
  await element(doc.head, "script", {src: axe});
  const told = await frame.contentWindow.axe.run(doc, {
    runOnly: ["color-contrast", "image-alt", "link-name", "document-title"],
    checks: {"color-contrast": {options: {ignoreLength: true}}},
    resultTypes: ["violations", "incomplete"],
  });
  for (const rule of [...told.violations, ...told.incomplete]) {
    for (const node of rule.nodes) {
      const checks = [...node.any, ...node.all, ...node.none];
      found.push({rule: rule.id, sure: told.violations.includes(rule), html: node.html,
                  says: checks.map(check => check.message).join("; ")});
    }
  }
  frame.style.width = `${phone}px`;
  if (doc.documentElement.scrollWidth > phone) {
    const says = `${doc.documentElement.scrollWidth} pixels wide on a phone of ${phone}`;
    const causes = wide(doc);
    for (const e of causes.length ? causes : [doc.body]) {
      found.push({rule: "width", sure: true, html: e.outerHTML, says});
    }
  }
  frame.remove();
  return found.map(fault => ({page: page.name, theme, ...fault, html: fault.html.slice(0, 120)}));
}

(async () => {
  const found = [];
  for (const page of pages) {
    for (const theme of ["light", "dark"]) {
      found.push(...await look(page, theme));
    }
  }
  return JSON.stringify(found);
})().catch(error => `looks.js: ${error}`).then(text => {
  document.body.replaceChildren(Object.assign(document.createElement("pre"), {textContent: text}));
});
