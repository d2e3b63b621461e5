// A short message that goes away by itself; screen readers hear it.

export function toast(text, { kind = "", seconds = 5 } = {}) {
  const box = document.getElementById("toasts");
  const shown = document.createElement("div");
  shown.className = kind;
  shown.textContent = text;
  box.append(shown);
  while (box.children.length > 3) box.firstChild.remove();
  const timer = setTimeout(() => shown.remove(), seconds * 1000);
  shown.addEventListener("click", () => {
    clearTimeout(timer);
    shown.remove();
  });
}
