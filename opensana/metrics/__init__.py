"""PSNR, SSIM, LPIPS, Fréchet distances and CLIP scores, and the networks behind them."""
