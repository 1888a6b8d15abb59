"""The equation ledger, paper equation → lesson → function → test, and the symbols, as data.

The notation tables of the lessons are made from it: `{{notation 01}}` and `{{equations 01}}` in a lesson's source
become the tables of that lesson, `{{notation}}` and `{{equations}}` those of the course.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Equation:
    """One row of the ledger.

    Args:
        paper: "Ho", "Song", "IDDPM" or another key of `PAPERS`.
        place: "eq. 4", "section 3.2", "algorithm 1".
        says: its content in the course's notation, LaTeX; `$ $` where a long one may be broken.
        lesson: the lesson "NN" that derives it.
        function: dotted name, below `ddpm_from_scratch`, of what computes it.
        test: "tests/file.py::test" that checks it, against the truth where that is known.
    """

    paper: str
    place: str
    says: str
    lesson: str
    function: str
    test: str


@dataclass(frozen=True)
class Symbol:
    """One symbol: `here` and in the papers as LaTeX, in Diffusers by name; `lesson` is where it first appears."""

    here: str
    meaning: str
    ho: str
    song: str
    diffusers: str
    lesson: str


PAPERS = {
    "Ho": "Ho, Jain, Abbeel 2020, Denoising Diffusion Probabilistic Models (arXiv 2006.11239)",
    "Song": "Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models (arXiv 2010.02502)",
    "IDDPM": "Nichol, Dhariwal 2021, Improved DDPM (arXiv 2102.09672)",
    "Salimans": "Salimans, Ho 2022, Progressive Distillation (arXiv 2202.00512)",
    "Lin": "Lin et al. 2024, Common Diffusion Noise Schedules and Sample Steps are Flawed (arXiv 2305.08891)",
    "Guidance": "Ho, Salimans 2022, Classifier-Free Diffusion Guidance (arXiv 2207.12598)",
    "Heusel": "Heusel et al. 2017, GANs Trained by a Two Time-Scale Update Rule (arXiv 1706.08500)",
    "Binkowski": "Binkowski et al. 2018, Demystifying MMD GANs (arXiv 1801.01401)",
    "Hang": "Hang et al. 2023, Efficient Diffusion Training via Min-SNR Weighting (arXiv 2303.09556)",
    "Vaswani": "Vaswani et al. 2017, Attention Is All You Need (arXiv 1706.03762)",
}

GAUSSIAN, SCHEDULES, SCHEDULERS, ORACLE, BOUND, TRAINING, UNET = (
    f"tests/test_{name}.py::" for name in ("gaussian", "schedules", "schedulers", "oracle", "bound", "training", "unet")
)

EQUATIONS = (
    Equation(
        "Ho",
        "eq. 2",
        r"q(x_t \mid x_{t-1}) = \mathcal N(\sqrt{1-\beta_t}\, x_{t-1},\ \beta_t I)",
        "01",
        "gaussian.forward_step",
        GAUSSIAN + "test_forward_step_is_eq_2_and_preserves_unit_variance",
    ),
    Equation(
        "Ho",
        "eq. 4",
        r"q(x_t \mid x_0) = \mathcal N(\sqrt{\bar\alpha_t}\, x_0,\ (1-\bar\alpha_t) I)",
        "01",
        "gaussian.q_sample",
        GAUSSIAN + "test_q_sample_is_the_forward_chain_in_one_jump",
    ),
    Equation(
        "Ho",
        "above eq. 4",
        r"\bar\alpha_t = \prod_{s=1}^{t} (1-\beta_s)",
        "01",
        "schedules.alpha_bars",
        SCHEDULES + "test_linear_is_that_of_the_paper",
    ),
    Equation(
        "Ho",
        "section 4",
        r"\beta_t \text{ from } 10^{-4} \text{ to } 0.02",
        "02",
        "schedules.linear",
        SCHEDULES + "test_linear_is_that_of_the_paper",
    ),
    Equation(
        "IDDPM",
        "eq. 17",
        r"\bar\alpha_t = f(t)/f(0),\ f(t) = \cos^2\!\big(\tfrac{t/T+s}{1+s} \cdot \tfrac{\pi}{2}\big)",
        "02",
        "schedules.cosine",
        SCHEDULES + "test_cosine_is_eq_17",
    ),
    Equation(
        "Lin",
        "algorithm 1",
        r"\bar\alpha_T = 0",
        "02",
        "schedules.rescale_zero_terminal_snr",
        SCHEDULES + "test_the_rescale_ends_at_exactly_zero",
    ),
    Equation(
        "Ho",
        "eq. 1",
        r"p_\theta(x_{t-1} \mid x_t) = \mathcal N(\mu_\theta(x_t, t),\ \sigma_t^2 I)",
        "03",
        "schedulers.DDPMScheduler.step",
        ORACLE + "test_mean_and_variance_after_every_step",
    ),
    Equation(
        "Ho",
        "eq. 3",
        r"L = \operatorname{E}_q\Big[-\log p(x_T) - \textstyle\sum_{t\ge1}"
        r" \log \tfrac{p_\theta(x_{t-1} \mid x_t)}{q(x_t \mid x_{t-1})}\Big] \ge -\log p_\theta(x_0)",
        "03",
        "metrics.bits_per_dimension",
        BOUND + "test_bits_are_the_bound_of_eq_3",
    ),
    Equation(
        "Ho",
        "eq. 5",
        r"L_T + \sum_{t>1} L_{t-1} + L_0, \text{ all KLs of Gaussians but } L_0",
        "03",
        "gaussian.normal_kl",
        GAUSSIAN + "test_normal_kl_is_the_integral",
    ),
    Equation(
        "Ho",
        "eq. 6",
        r"q(x_{t-1} \mid x_t, x_0) = \mathcal N(\tilde\mu_t(x_t, x_0),\ \tilde\beta_t I)",
        "03",
        "gaussian.posterior_mean",
        GAUSSIAN + "test_posterior_is_the_conditional_of_the_joint_gaussian",
    ),
    Equation(
        "Ho",
        "eq. 7",
        r"\tilde\mu_t = \tfrac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}\, x_0"
        r" + \tfrac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}\, x_t",
        "03",
        "gaussian.posterior_mean",
        GAUSSIAN + "test_posterior_is_the_conditional_of_the_joint_gaussian",
    ),
    Equation(
        "Ho",
        "eq. 7",
        r"\tilde\beta_t = \tfrac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\, \beta_t",
        "03",
        "gaussian.posterior_variance",
        GAUSSIAN + "test_posterior_is_the_conditional_of_the_joint_gaussian",
    ),
    Equation(
        "Ho",
        "section 3.2",
        r"\nabla \log q(x_t) = -\operatorname{E}[\varepsilon \mid x_t] / \sqrt{1-\bar\alpha_t}",
        "03",
        "gaussian.score_from_eps",
        GAUSSIAN + "test_score_of_gaussian_data",
    ),
    Equation(
        "Ho",
        "eq. 8",
        r"L_{t-1} = \operatorname{E}_q\Big[\tfrac{1}{2\sigma_t^2} \lVert \tilde\mu_t(x_t, x_0)"
        r" - \mu_\theta(x_t, t) \rVert^2\Big] + C",
        "03",
        "gaussian.normal_kl",
        BOUND + "test_the_kl_of_a_step_is_a_squared_difference_of_means",
    ),
    Equation(
        "Ho",
        "eq. 9",
        r"\text{eq. 8 with } x_0 = (x_t - \sqrt{1-\bar\alpha_t}\, \varepsilon) / \sqrt{\bar\alpha_t}",
        "03",
        "gaussian.posterior_mean",
        BOUND + "test_the_posterior_mean_written_by_the_noise",
    ),
    Equation(
        "Ho",
        "eq. 10",
        r"\text{and so } \tilde\mu_t = \tfrac{1}{\sqrt{\alpha_t}} \big(x_t"
        r" - \tfrac{\beta_t}{\sqrt{1-\bar\alpha_t}}\, \varepsilon\big)",
        "03",
        "gaussian.posterior_mean",
        BOUND + "test_the_posterior_mean_written_by_the_noise",
    ),
    Equation(
        "Ho",
        "eq. 12",
        r"L_{t-1} - C = \operatorname{E}\Big[\tfrac{\beta_t^2}{2\sigma_t^2\alpha_t(1-\bar\alpha_t)}"
        r" \lVert \varepsilon - \varepsilon_\theta(x_t, t) \rVert^2\Big]",
        "03",
        "course.exercises.l03.eps_weight",
        "tests/test_mixture.py::test_the_weight_of_the_bound_is_the_ratio_of_kl_and_squared_error",
    ),
    Equation(
        "Ho",
        "eq. 14",
        r"L_{\text{simple}} = \operatorname{E} \lVert \varepsilon"
        r" - \varepsilon_\theta(x_t, t) \rVert^2",
        "03",
        "training.diffusion_loss",
        TRAINING + "test_a_model_that_says_zero_has_loss_one",
    ),
    Equation(
        "Ho",
        "eq. 15",
        r"\hat x_0 = (x_t - \sqrt{1-\bar\alpha_t}\, \varepsilon_\theta) / \sqrt{\bar\alpha_t}",
        "03",
        "gaussian.x0_from_eps",
        GAUSSIAN + "test_each_prediction_gives_back_the_others",
    ),
    Equation(
        "Salimans",
        "appendix D",
        r"v = \sqrt{\bar\alpha_t}\, \varepsilon - \sqrt{1-\bar\alpha_t}\, x_0",
        "03",
        "gaussian.velocity",
        GAUSSIAN + "test_velocity_is_the_derivative_along_the_circle",
    ),
    Equation(
        "Salimans",
        "appendix D",
        r"\hat x_0 = \sqrt{\bar\alpha_t}\, x_t - \sqrt{1-\bar\alpha_t}\, v",
        "03",
        "gaussian.x0_from_v",
        GAUSSIAN + "test_each_prediction_gives_back_the_others",
    ),
    Equation(
        "Vaswani",
        "section 3.5",
        r"e(t) = (\sin \omega_i t,\ \cos \omega_i t),\ \omega_i = 10000^{-i/(d/2)}",
        "04",
        "models.embeddings.sinusoidal_embedding",
        UNET + "test_sinusoidal_embedding",
    ),
    Equation(
        "Ho",
        "appendix B",
        r"x + \operatorname{conv}(\operatorname{conv}(x) + \text{temb}),"
        r" $ $\text{norm and SiLU}$ $\text{before each convolution}",
        "04",
        "models.resnet.ResnetBlock2D",
        UNET + "test_a_resnet_block_written_out",
    ),
    Equation(
        "Vaswani",
        "eq. 1",
        r"\operatorname{softmax}(QK^\top/\sqrt d)\, V",
        "04",
        "models.attention.scaled_dot_product_attention",
        UNET + "test_attention_for_few_tokens_and_for_many",
    ),
    Equation(
        "Ho",
        "appendix B",
        r"\text{the U-Net: down, middle, up, with skips}",
        "05",
        "models.unet.UNet2DModel",
        UNET + "test_published_sizes",
    ),
    Equation(
        "Ho",
        "algorithm 1",
        r"\text{training}",
        "06",
        "training.train",
        TRAINING + "test_it_learns_eight_images_by_heart",
    ),
    Equation(
        "Ho",
        "algorithm 2",
        r"\text{sampling, } z = 0 \text{ at the last step}",
        "07",
        "schedulers.DDPMScheduler.step",
        ORACLE + "test_mean_and_variance_after_every_step",
    ),
    Equation(
        "Ho",
        "eq. 11",
        r"\mu_\theta(x_t, t) = \tfrac{1}{\sqrt{\alpha_t}} \big(x_t - \tfrac{\beta_t}{\sqrt{1-\bar\alpha_t}}"
        r"\, \varepsilon_\theta(x_t, t)\big)",
        "07",
        "schedulers.DDPMScheduler.step",
        ORACLE + "test_mean_and_variance_after_every_step",
    ),
    Equation(
        "Ho",
        "section 3.2",
        r"\sigma_t^2 = \beta_t \text{ for } x_0 \sim \mathcal N(0, I),\ \tilde\beta_t \text{ for a point}",
        "07",
        "course.exercises.l07.reverse_variance",
        ORACLE + "test_the_true_variance_of_a_step_back_keeps_every_marginal",
    ),
    Equation(
        "IDDPM",
        "eq. 19",
        r"\tilde\beta \text{ of a strided schedule, from } \bar\alpha_t"
        r" \text{ and } \bar\alpha_{\text{prev}}",
        "07",
        "gaussian.posterior_variance",
        GAUSSIAN + "test_posterior_is_the_conditional_of_the_joint_gaussian",
    ),
    Equation(
        "Lin",
        "table 2",
        r"\text{leading, trailing and linspace timesteps}",
        "07",
        "schedulers.base.Scheduler._spaced_timesteps",
        SCHEDULERS + "test_spacings_are_table_2",
    ),
    Equation(
        "Ho",
        "eq. 16",
        r"L = \mathrm{KL}(q(x_T) \Vert p(x_T))$ $+ \operatorname{E}_q \textstyle\sum_{t\ge1} "
        r"\mathrm{KL}(q(x_{t-1} \mid x_t) \Vert p_\theta(x_{t-1} \mid x_t))$ $+ H(x_0)",
        "07",
        "gaussian.normal_kl",
        BOUND + "test_the_bound_read_progressively_is_that_of_eq_3",
    ),
    Equation(
        "Song",
        "eq. 5",
        r"L_\gamma = \textstyle\sum_t \gamma_t \operatorname{E} \lVert \varepsilon_\theta(x_t, t) - \varepsilon "
        r"\rVert^2",
        "08",
        "training.loss_weights",
        TRAINING + "test_min_snr_weights",
    ),
    Equation(
        "Song",
        "eq. 4",
        r"x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1-\bar\alpha_t}\, \varepsilon",
        "08",
        "gaussian.q_sample",
        GAUSSIAN + "test_q_sample_moments",
    ),
    Equation(
        "Song",
        "eq. 6",
        r"q_\sigma(x_{1:T} \mid x_0) = q_\sigma(x_T \mid x_0)"
        r" \textstyle\prod_{t>1} q_\sigma(x_{t-1} \mid x_t, x_0)",
        "08",
        "gaussian.ddim_mean",
        GAUSSIAN + "test_ddim_keeps_the_marginals",
    ),
    Equation(
        "Song",
        "eq. 7",
        r"q_\sigma(x_{\text{prev}} \mid x_t, x_0), \text{ the family with the marginals of eq. 4 (lemma 1)}",
        "08",
        "gaussian.ddim_mean",
        GAUSSIAN + "test_ddim_keeps_the_marginals",
    ),
    Equation(
        "Song",
        "eq. 8",
        r"q_\sigma(x_t \mid x_{t-1}, x_0) \text{ by Bayes, no Markov chain in general}",
        "08",
        "gaussian.ddim_mean",
        BOUND + "test_the_steps_forward_of_the_family_by_bayes",
    ),
    Equation(
        "Song",
        "lemma 1",
        r"q_\sigma(x_t \mid x_0) = \mathcal N(\sqrt{\bar\alpha_t}\, x_0,\ (1-\bar\alpha_t) I) \text{ for every } "
        r"\sigma",
        "08",
        "gaussian.ddim_mean",
        GAUSSIAN + "test_ddim_keeps_the_marginals",
    ),
    Equation(
        "Song",
        "eq. 9",
        r"\hat x_0 = (x_t - \sqrt{1-\bar\alpha_t}\, \varepsilon_\theta) / \sqrt{\bar\alpha_t}",
        "08",
        "gaussian.x0_from_eps",
        GAUSSIAN + "test_each_prediction_gives_back_the_others",
    ),
    Equation(
        "Song",
        "eq. 10",
        r"p_\theta(x_{t-1} \mid x_t) = q_\sigma(x_{t-1} \mid x_t, \hat x_0)",
        "08",
        "schedulers.DDIMScheduler.step",
        ORACLE + "test_mean_and_variance_after_every_step",
    ),
    Equation(
        "Song",
        "eq. 11",
        r"J_\sigma = \operatorname{E}_{q_\sigma}[\log q_\sigma(x_{1:T} \mid x_0) - \log p_\theta(x_{0:T})]",
        "08",
        "gaussian.normal_kl",
        BOUND + "test_the_bound_of_the_family_is_the_weighted_loss",
    ),
    Equation(
        "Song",
        "theorem 1",
        r"J_\sigma = L_\gamma + C",
        "08",
        "gaussian.normal_kl",
        BOUND + "test_the_bound_of_the_family_is_the_weighted_loss",
    ),
    Equation(
        "Song",
        "eq. 12",
        r"x_{\text{prev}} = \sqrt{\bar\alpha_{\text{prev}}}\, \hat x_0 + \sqrt{1-\bar\alpha_{\text{prev}}-\sigma_t^2}\,"
        r" \varepsilon_\theta + \sigma_t z",
        "08",
        "gaussian.ddim_mean",
        GAUSSIAN + "test_ddim_keeps_the_marginals",
    ),
    Equation(
        "Song",
        "eq. 16",
        r"\sigma_t(\eta) = \eta \sqrt{\tfrac{1-\bar\alpha_{\text{prev}}}{1-\bar\alpha_t}}"
        r" \sqrt{1 - \tfrac{\bar\alpha_t}{\bar\alpha_{\text{prev}}}}",
        "08",
        "gaussian.ddim_sigma",
        GAUSSIAN + "test_ddim_at_eta_1_is_the_posterior",
    ),
    Equation(
        "Song",
        "section 4.2",
        r"\tau, \text{ a subsequence of the timesteps}",
        "08",
        "few_steps.quadratic_timesteps",
        "tests/test_few_steps.py::test_quadratic_timesteps_are_dense_at_the_clean_end",
    ),
    Equation(
        "Song",
        "eq. 13",
        r"\text{the deterministic step as an Euler step of an ODE}",
        "09",
        "schedulers.ddim_invert",
        SCHEDULERS + "test_encoding_then_decoding_returns_the_image_as_steps_shrink",
    ),
    Equation(
        "Song",
        "eq. 14",
        r"d\bar x / d\sigma = \varepsilon_\theta(\bar x / \sqrt{\sigma^2+1},\ t)",
        "09",
        "course.exercises.l09.ode_step",
        ORACLE + "test_ddim_converges_to_the_exact_transport",
    ),
    Equation(
        "Song",
        "section 5.3",
        r"z_w = \tfrac{\sin((1-w)\theta)}{\sin\theta}\, z_0 + \tfrac{\sin(w\theta)}{\sin\theta}\, z_1",
        "09",
        "course.exercises.l09.slerp",
        "tests/test_widgets_interpolation.py::test_between_the_corners_the_noise_is_on_the_sphere",
    ),
    Equation(
        "Ho",
        "eq. 13",
        r"p_\theta(x_0 \mid x_1) = \textstyle\prod_i \int_{\delta_-(x_0^i)}^{\delta_+(x_0^i)}"
        r" \mathcal N(x; \mu^i, \sigma_1^2)\, dx",
        "11",
        "gaussian.discretized_log_likelihood",
        GAUSSIAN + "test_bins_are_the_naive_difference_where_that_is_exact",
    ),
    Equation(
        "Binkowski",
        "section 4",
        r"k(x, y) = (x^\top y / D + 1)^3",
        "11",
        "metrics.kernel",
        "tests/test_metrics.py::test_kernel_distance_is_unbiased",
    ),
    Equation(
        "Heusel",
        "eq. 6",
        r"d^2 = \lVert \mu_1 - \mu_2 \rVert^2"
        r" + \operatorname{Tr}\big(\Sigma_1 + \Sigma_2 - 2(\Sigma_1\Sigma_2)^{1/2}\big)",
        "11",
        "metrics.frechet_distance",
        "tests/test_metrics.py::test_frechet_distance_in_two_dimensions_is_the_closed_form",
    ),
    Equation(
        "Guidance",
        "algorithm 1",
        r"\text{training with some labels replaced by } \varnothing",
        "12",
        "course.exercises.l12.drop_labels",
        TRAINING + "test_labels_are_dropped_as_often_as_asked",
    ),
    Equation(
        "Guidance",
        "section 3.2",
        r"\tilde\varepsilon = (1+w)\, \varepsilon_\theta(x_t, t, c) - w\, \varepsilon_\theta(x_t, t, \varnothing)",
        "12",
        "course.exercises.l12.guided_eps",
        "tests/test_guidance.py::test_guidance_follows_the_exact_classifier",
    ),
    Equation(
        "IDDPM",
        "eq. 15",
        r"\log \sigma_t^2 = v \log \beta_t + (1-v) \log \tilde\beta_t",
        "12",
        "schedulers.DDPMScheduler._log_variance",
        SCHEDULERS + "test_a_variance_is_a_variance",
    ),
    Equation(
        "IDDPM",
        "eq. 16",
        r"L_{\text{hybrid}} = L_{\text{simple}} + \lambda L_{\text{vlb}}",
        "12",
        "training.diffusion_loss",
        TRAINING + "test_the_bound_trains_the_variance_alone",
    ),
    Equation(
        "Hang",
        "section 3.4",
        r"w_t = \min(\text{SNR}_t, \gamma) / \text{SNR}_t",
        "12",
        "training.loss_weights",
        TRAINING + "test_min_snr_weights",
    ),
)
"""The ledger. Order: by lesson, and within one as the lesson goes."""

SYMBOLS = (
    Symbol("x_0", "a clean image or point", "x_0", "x_0", "original_samples", "01"),
    Symbol("x_t", "the same after $t$ steps of noise", "x_t", "x_t", "noisy_samples, sample", "01"),
    Symbol("T", "number of steps", "T", "T", "num_train_timesteps", "01"),
    Symbol(
        r"\beta_t", "variance of the noise that step $t$ adds", r"\beta_t", r"1 - \alpha_t/\alpha_{t-1}", "betas", "01"
    ),
    Symbol(
        r"\alpha_t = 1 - \beta_t",
        "share of the variance that step $t$ keeps",
        r"\alpha_t",
        r"\alpha_t/\alpha_{t-1}",
        "alphas",
        "01",
    ),
    Symbol(
        r"\bar\alpha_t = \alpha_1 \cdots \alpha_t",
        "share of $x_0$'s variance left after $t$ steps",
        r"\bar\alpha_t",
        r"\alpha_t",
        "alphas_cumprod",
        "01",
    ),
    Symbol(r"\varepsilon", r"noise, a draw from $\mathcal N(0, I)$", r"\epsilon", r"\epsilon", "noise", "01"),
    Symbol("q", "distributions of the forward process", "q", "q", "", "01"),
    Symbol(r"\text{SNR}_t = \bar\alpha_t/(1-\bar\alpha_t)", "signal-to-noise ratio of $x_t$", "", "", "", "01"),
    Symbol(r"\lambda_t = \log \text{SNR}_t", "log-SNR, how hard the task at $t$ is", "", "", "", "02"),
    Symbol("s", "offset of the cosine schedule (IDDPM eq. 17)", "", "", "", "02"),
    Symbol("w_k, m_k", "data of known parts: probability of part $k$, and its point or centre", "", "", "", "02"),
    Symbol("r_k(x_t)", "probability of part $k$, given $x_t$", "", "", "", "02"),
    Symbol(r"p_\theta", "distributions of the learned reverse process", r"p_\theta", r"p_\theta", "", "03"),
    Symbol(
        r"\varepsilon_\theta(x_t, t)",
        "the network's prediction of the noise in $x_t$",
        r"\epsilon_\theta(x_t, t)",
        r"\epsilon_\theta^{(t)}(x_t)",
        "model_output",
        "03",
    ),
    Symbol(
        r"\varepsilon^*(x_t, t)",
        "the best prediction of the noise, $\\mathbb E[\\varepsilon \\mid x_t]$",
        "",
        "",
        "",
        "03",
    ),
    Symbol(
        r"\hat x_0",
        "the clean image that a prediction stands for",
        r"\hat x_0",
        r"f_\theta^{(t)}(x_t)",
        "pred_original_sample",
        "03",
    ),
    Symbol("v", "velocity, the third thing a network may predict", "", "", "v_prediction", "03"),
    Symbol("s_k, V_k", "standard deviation of part $k$, and its variance after $t$ steps of noise", "", "", "", "03"),
    Symbol(r"\tilde\mu_t", "mean of $q(x_{t-1} \\mid x_t, x_0)$", r"\tilde\mu_t", "", "", "03"),
    Symbol(
        r"\tilde\beta_t",
        "variance of $q(x_{t-1} \\mid x_t, x_0)$",
        r"\tilde\beta_t",
        r"\sigma_t^2(1)",
        "fixed_small",
        "03",
    ),
    Symbol(
        r"\sigma_t",
        "standard deviation of the noise in one step back",
        r"\sigma_t",
        r"\sigma_t",
        "variance_type, eta",
        "03",
    ),
    Symbol("B, C, H, W", "images in a batch, channels, height and width of a map", "", "", "sample.shape", "04"),
    Symbol("e(t)", "$t$ as a vector of $d$ sines and cosines", "", "", "time_proj", "04"),
    Symbol(r"\omega_i", "frequency of its $i$-th sine and cosine", "", "", "freq_shift, flip_sin_to_cos", "04"),
    Symbol(r"\text{temb}", "$e(t)$ after two linear layers", "", "", "time_embedding", "04"),
    Symbol("G", "groups of a group norm", "", "", "norm_num_groups", "04"),
    Symbol("Q, K, V", "queries, keys and values of attention, $d$ numbers each", "", "", "to_q, to_k, to_v", "04"),
    Symbol("r, j", "receptive field, and distance of neighbours in input pixels", "", "", "", "04"),
    Symbol("L, n", "resolutions, and ResNet blocks per resolution on the way down", "", "", "layers_per_block", "05"),
    Symbol("c_l", "channels at resolution $l$, the finest first", "", "", "block_out_channels", "05"),
    Symbol("B", "number of images in a batch", "", "", "batch_size", "06"),
    Symbol(r"\mathrm{lr}", "learning rate, how far a step goes", "", "", "learning_rate", "06"),
    Symbol("d", "decay of the averaged weights; $1/(1-d)$ is their horizon", "", "", "EMAModel.decay", "06"),
    Symbol(r"\bar w_n", "averaged weights after $n$ updates", "", "", "EMAModel.shadow_params", "06"),
    Symbol(
        r"\bar\alpha_{\text{prev}}",
        "$\\bar\\alpha$ at the step moved to",
        r"\bar\alpha_{t-1}",
        r"\alpha_{\tau_{i-1}}",
        "alpha_prod_t_prev",
        "07",
    ),
    Symbol(
        r"V_t = \bar\alpha_t s^2 + 1 - \bar\alpha_t",
        "variance of $x_t$ over Gaussian data of variance $s^2$",
        "",
        "",
        "",
        "07",
    ),
    Symbol(r"\eta", "from 0, deterministic, to 1, as much noise as DDPM", "", r"\eta", "eta", "08"),
    Symbol(r"q_\sigma", "the process with the noise $\\sigma_t$ in its steps back", "", r"q_\sigma", "", "08"),
    Symbol(
        r"\hat\sigma_t",
        "$\\sqrt{\\beta}$ of a stride, DDPM's larger choice",
        r"\sigma_t",
        r"\hat\sigma",
        "fixed_large",
        "08",
    ),
    Symbol(r"L_\gamma, \gamma_t", "the loss with weight $\\gamma_t$ at each $t$", "", r"L_\gamma, \gamma_t", "", "08"),
    Symbol(r"J_\sigma", "the bound for $q_\\sigma$", "", r"J_\sigma", "", "08"),
    Symbol(r"\tau", "the timesteps that are visited", "", r"\tau", "timesteps", "08"),
    Symbol("S", "their number", "", r"S, \dim(\tau)", "num_inference_steps", "08"),
    Symbol(r"\bar x = x_t/\sqrt{\bar\alpha_t}", "$x_t$ with the shrinking undone", "", r"\bar x", "", "09"),
    Symbol(
        r"\sigma(t) = \sqrt{(1-\bar\alpha_t)/\bar\alpha_t}",
        "noise on the scale of $\\bar x$, the time of the ODE",
        "",
        r"\sigma(t)",
        "",
        "09",
    ),
    Symbol(
        r"z_0, z_1, z_w", "two noises, and the one at the share $w$ of the way", "", r"z_0, z_1, z_\alpha", "", "09"
    ),
    Symbol(r"\theta", "angle between two noises, in lesson 09", "", r"\theta", "", "09"),
    Symbol(r"\mu, \Sigma", "mean and covariance of feature vectors", "", "", "", "11"),
    Symbol("D", "number of features, or of pixels", "D", "", "", "11"),
    Symbol("N", "number of samples that are judged", "", "", "", "11"),
    Symbol("k(x, y)", "kernel, how alike two feature vectors are", "", "", "", "11"),
    Symbol(r"c,\ \varnothing", "a class, and “no class”", "", "", "class_labels", "12"),
    Symbol("w", "strength of guidance, 0 for none", "", "", "guidance_scale - 1", "12"),
    Symbol(r"\tilde\varepsilon", "the guided prediction", "", "", "", "12"),
    Symbol(r"\gamma", "where min-SNR weights are cut off", "", "", "", "12"),
)
"""The symbols, in the order in which the lessons bring them."""


def equations_table(lesson: str | None = None) -> str:
    """The ledger as a markdown table, or the rows of lesson "NN"."""
    rows = [
        f"| {e.paper} {e.place} | ${e.says}$ | " + f"{e.lesson} | " * (lesson is None) + f"`{e.function}` |"
        for e in EQUATIONS
        if lesson in (None, e.lesson)
    ]
    heads = ["equation", "says", *["lesson"] * (lesson is None), "in the package"]
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows])


def notation_table(lesson: str | None = None) -> str:
    """The symbols as a markdown table, with their lessons, or those that lesson "NN" brings.

    The columns of the papers are left out where no symbol of the lesson stands in one.
    """

    def math(symbol: str) -> str:
        return f"${symbol}$" if symbol else ""

    symbols = [s for s in SYMBOLS if lesson in (None, s.lesson)]
    if not any(s.ho or s.song or s.diffusers for s in symbols):
        return "\n".join(["| here | meaning |", "|---|---|", *(f"| {math(s.here)} | {s.meaning} |" for s in symbols)])
    rows = [
        f"| {math(s.here)} | {s.meaning} | {math(s.ho)} | {math(s.song)} | "
        + ", ".join(f"`{name}`" for name in s.diffusers.split(", ") if name)
        + (" |" if lesson else f" | {s.lesson} |")
        for s in symbols
    ]
    heads = ["here", "meaning", "Ho", "Song", "Diffusers", *["lesson"] * (lesson is None)]
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows])


TABLES = {"notation": notation_table, "equations": equations_table}


def fill(text: str) -> str:
    """`text` with its tables in the place of `{{notation}}`, `{{equations}}` and the same with a lesson's number."""
    return re.sub(r"\{\{(notation|equations)(?: (\d\d))?\}\}", lambda m: TABLES[m[1]](m[2]), text)
